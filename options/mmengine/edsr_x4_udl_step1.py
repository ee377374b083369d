# UDL step 1, EDSR (32 blocks, 256 features) x4 on DIV2K.
_base_ = ['edsr_s_x4_udl_step1.py']

model = dict(generator=dict(num_feat=256, num_block=32))
