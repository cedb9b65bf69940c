"""ComfyUI's node classes that there are not, each with the reason, for whoever submits a workflow that has one.

Every class of ComfyUI 0.33.0, its extras and its API nodes is either in `registry.BUILTIN` or here.
"""

from __future__ import annotations

from collections.abc import Mapping

PAID = "it calls a paid service on the internet"
"""Why there are no API nodes."""
VIDEO = "of video models only Wan's are supported, told of texts, images and videos"

_BY_REASON: Mapping[str, str] = {
    PAID: (
        "ViduTextToVideoNode ViduImageToVideoNode ViduReferenceVideoNode ViduStartEndToVideoNode "
        "KlingTextToVideoNode KlingImage2VideoNode KlingStartEndFrameNode KlingVideoExtendNode "
        "KlingLipSyncAudioToVideoNode KlingLipSyncTextToVideoNode KlingImageGenerationNode GeminiNode "
        "GeminiImageNode GeminiInputFiles IdeogramV3 WanTextToImageApi WanImageToImageApi WanTextToVideoApi "
        "WanImageToVideoApi FluxProUltraImageNode FluxProExpandNode FluxProFillNode OpenAIVideoSora2 "
        "PixverseTemplateNode PixverseTextToVideoNode PixverseImageToVideoNode PixverseTransitionVideoNode "
        "TripoTextToModelNode TripoImageToModelNode TripoMultiviewToModelNode TripoTextureNode TripoRefineNode "
        "TripoRigNode TripoRetargetNode TripoConversionNode VeoVideoGenerationNode Veo3VideoGenerationNode "
        "RecraftTextToImageNode RecraftImageToImageNode RecraftImageInpaintingNode RecraftTextToVectorNode "
        "RecraftVectorizeImageNode RecraftRemoveBackgroundNode RecraftReplaceBackgroundNode "
        "RecraftCrispUpscaleNode RecraftCreativeUpscaleNode RecraftStyleV3RealisticImage "
        "RecraftStyleV3DigitalIllustration RecraftStyleV3LogoRaster RecraftStyleV3InfiniteStyleLibrary "
        "RecraftColorRGB RecraftControls Rodin3D_Regular Rodin3D_Detail Rodin3D_Smooth Rodin3D_Sketch "
        "Rodin3D_Gen2 LumaReferenceNode LumaConceptsNode LumaImageNode LumaImageModifyNode LumaVideoNode "
        "LumaImageToVideoNode RunwayImageToVideoNodeGen3a RunwayImageToVideoNodeGen4 RunwayFirstLastFrameNode "
        "RunwayTextToImageNode ByteDanceImageNode ByteDanceSeedreamNode ByteDanceTextToVideoNode "
        "ByteDanceImageToVideoNode ByteDanceFirstLastFrameNode ByteDanceImageReferenceNode "
        "MinimaxTextToVideoNode MinimaxImageToVideoNode MinimaxHailuoVideoNode OpenAIDalle2 OpenAIDalle3 "
        "OpenAIGPTImage1 OpenAIChatNode OpenAIInputFiles OpenAIChatConfig "
        "ClaudeNode BeebleSwitchXVideoEdit "
        "BeebleSwitchXImageEdit FluxKontextProImageNode FluxKontextMaxImageNode FluxEraseNode FluxVTONode "
        "Flux2ProImageNode Flux2MaxImageNode Flux2ImageNode Flux3TextToVideoNode Flux3ImageToVideoNode "
        "Flux3VideoContinuationNode FluxVideoUpscaleNode BriaImageEditNode BriaRemoveImageBackground BriaGenFill "
        "BriaEraser BriaExpandImage BriaIncreaseResolution BriaRemoveVideoBackground BriaVideoGreenScreen "
        "BriaVideoReplaceBackground BriaTransparentVideoBackground ByteDanceSeedreamNodeV2 "
        "ByteDanceSeedreamNodeV3 ByteDanceSeedreamLayerSeparationNode ByteDance2TextToVideoNode "
        "ByteDance2FirstLastFrameNode ByteDance2ReferenceNode ByteDance2ReferenceNodeV2 "
        "ByteDanceCreateImageAsset ByteDanceCreateVideoAsset ByteDanceSeedAudio ByteDanceVideoEnhanceNode "
        "ByteDanceSeedNode ElevenLabsSpeechToText ElevenLabsVoiceSelector ElevenLabsTextToSpeech "
        "ElevenLabsAudioIsolation ElevenLabsTextToSoundEffects ElevenLabsInstantVoiceClone "
        "ElevenLabsSpeechToSpeech ElevenLabsTextToDialogue FishAudioVoiceSelector FishAudioTextToSpeech "
        "FishAudioSpeechToText FishAudioInstantVoiceClone GeminiNodeV2 GeminiImage2Node GeminiNanoBanana2 "
        "GeminiNanoBanana2V2 GeminiVideoOmni GrokImageNode GrokImageEditNode GrokImageEditNodeV2 GrokVideoNode "
        "GrokVideoReferenceNode GrokVideoEditNode GrokVideoExtendNode HeyGenTalkingPhotoNode "
        "HeyGenAvatarVideoNode HeyGenCreateAvatarNode HeyGenVideoTranslateNode HeyGenTextToSpeechNode "
        "HitPawGeneralImageEnhance HitPawVideoEnhance TencentTextToModelNode TencentImageToModelNode "
        "TencentModelTo3DUVNode Tencent3DTextureEditNode Tencent3DPartNode TencentSmartTopologyNode IdeogramV4 "
        "IdeogramPImage KlingOmniProTextToVideoNode KlingOmniProFirstLastFrameNode KlingOmniProImageToVideoNode "
        "KlingOmniProVideoToVideoNode KlingOmniProEditVideoNode KlingOmniProImageNode KlingTextToVideoWithAudio "
        "KlingImageToVideoWithAudio KlingMotionControl KlingVideoNode KlingFirstLastFrameNode KlingAvatarNode "
        "Krea2ImageNode Krea2StyleReferenceNode LtxvApiTextToVideo LtxvApiImageToVideo LtxApi25TextToVideo "
        "LtxApi25ImageToVideo LtxApi25AudioToVideo LumaImageNode2 LumaImageEditNode2 LumaRay32TextToVideoNode "
        "LumaRay32ImageToVideoNode LumaRay32KeyframeNode LumaRay32KeyframesToVideoNode LumaRay32VideoEditNode "
        "LumaRay32VideoReframeNode LumaRay32ExtendVideoNode MagnificImageUpscalerCreativeNode "
        "MagnificImageUpscalerPreciseV2Node MagnificImageStyleTransferNode MagnificImageRelightNode "
        "MagnificImageSkinEnhancerNode MeshyTextToModelNode MeshyRefineNode MeshyImageToModelNode "
        "MeshyMultiImageToModelNode MeshyRigModelNode MeshyAnimateModelNode MeshyTextureNode "
        "MinimaxHailuo03TextToVideoNode MinimaxHailuo03FirstLastFrameNode MinimaxHailuo03ReferenceNode "
        "MinimaxHailuo03ContextIRNode MinimaxHailuo03RegenerateNode OpenAIGPTImageNodeV2 OpenRouterLLMNode "
        "QuiverTextToSVGNode QuiverImageToSVGNode QwenImageTextToImageApi QwenImageEditApi "
        "RecraftCreateStyleNode RecraftV4TextToImageNode RecraftV4TextToVectorNode ReveImageCreateNode "
        "ReveImageEditNode ReveImageRemixNode Rodin3D_Gen25_Image Rodin3D_Gen25_Text "
        "RunwayAleph2VideoToVideoNode RunwayAleph2KeyframeNode RunwayAleph2PromptImageNode SoniloVideoToMusic "
        "SoniloTextToMusic SyncLipSyncNode SyncTalkingImageNode TopazImageEnhance TopazImageEnhanceV2 "
        "TopazVideoEnhance TopazVideoEnhanceV2 TripoP1TextToModelNode TripoP1ImageToModelNode "
        "TripoP1MultiviewToModelNode TripoImportModelNode Veo3FirstLastFrameNode Vidu2TextToVideoNode "
        "Vidu2ImageToVideoNode Vidu2ReferenceVideoNode Vidu2StartEndToVideoNode ViduExtendVideoNode "
        "ViduMultiFrameVideoNode Vidu3TextToVideoNode Vidu3ImageToVideoNode Vidu3StartEndToVideoNode "
        "WanReferenceVideoApi Wan2TextToVideoApi Wan2ImageToVideoApi Wan2VideoContinuationApi Wan2VideoEditApi "
        "Wan2ReferenceVideoApi HappyHorseTextToVideoApi HappyHorseImageToVideoApi HappyHorseVideoEditApi "
        "HappyHorseReferenceVideoApi WavespeedFlashVSRNode WavespeedImageUpscaleNode"
    ),
    "models of sound are not supported": (
        "TextEncodeAceStepAudio EmptyAceStepLatentAudio EmptyLatentAudio VAEEncodeAudio VAEDecodeAudio "
        "ConditioningStableAudio AudioEncoderLoader AudioEncoderEncode VAEDecodeAudioTiled "
        "LTXVAudioVAELoader LTXVAudioVAEEncode LTXVAudioVAEDecode LTXVEmptyLatentAudio LTXAVTextEncoderLoader "
        "MiniMaxMusic3TextEncode EmptyMiniMaxMusic3LatentAudio TextEncodeAceStepAudio1.5 "
        "EmptyAceStep1.5LatentAudio ReferenceTimbreAudio"
    ),
    VIDEO: (
        "WanCameraEmbedding ContextWindowsManual WanContextWindowsManual EmptyCosmosLatentVideo "
        "CosmosImageToVideoLatent CosmosPredict2ImageToVideoLatent CLIPTextEncodeHunyuanDiT "
        "TextEncodeHunyuanVideo_ImageToVideo HunyuanImageToVideo "
        "HunyuanRefinerLatent EmptyLTXVLatentVideo LTXVImgToVideo ModelSamplingLTXV LTXVConditioning "
        "LTXVScheduler LTXVAddGuide LTXVPreprocess LTXVCropGuides EmptyMochiLatentVideo "
        "ImageOnlyCheckpointLoader SVD_img2vid_Conditioning "
        "VideoLinearCFGGuidance VideoTriangleCFGGuidance ImageOnlyCheckpointSave "
        "ConditioningSetAreaPercentageVideo WanTrackToVideo "
        "WanCameraImageToVideo WanPhantomSubjectToVideo WanSoundImageToVideo WanSoundImageToVideoExtend "
        "WanHuMoImageToVideo WanAnimateToVideo EmptyHunyuanVideo15Latent "
        "HunyuanVideo15ImageToVideo HunyuanVideo15SuperResolution HunyuanVideo15LatentUpscaleWithModel "
        "LatentUpscaleModelLoader LTXVLatentUpsampler EmptyMiniMaxH3LatentAV MiniMaxH3ImageToVideo "
        "MiniMaxH3AddGuide MiniMaxH3ReferenceToVideo MiniMaxH3SigmaShift LTXVImgToVideoInplace "
        "GetICLoRAParameters LTXVConcatAVLatent LTXVSeparateAVLatent LTXVReferenceAudio LTXVDualCFGGuider "
        "LTXVModalityGuidance LTXVSpatioTemporalGuidance LTXVDurationPredictor WanAnimate2ToVideo "
        "WanAnimate2Cache WanInfiniteTalkToVideo SeedVR2Conditioning SeedVR2Preprocess SeedVR2PostProcessing "
        "SeedVR2TemporalChunk SeedVR2TemporalMerge LTXVContextWindows wanBlockSwap Kandinsky5ImageToVideo "
        "NormalizeVideoLatentStart CLIPTextEncodeKandinsky5 WanMoveTrackToVideo WanMoveTracksFromCoords "
        "WanMoveConcatTrack WanMoveVisualizeTracks GenerateTracks EmptyARVideoLatent SamplerARVideo ARVideoI2V "
        "FrameInterpolationModelLoader FrameInterpolate WanSCAILToVideo SCAIL2ColoredMask OpticalFlowLoader "
        "VOIDQuadmaskPreprocess VOIDInpaintConditioning VOIDWarpedNoise VOIDWarpedNoiseSource VOIDSampler "
        "WanDancerVideo WanDancerEncodeAudio WanDancerPadKeyframes WanDancerPadKeyframesList"
    ),
    "3D models are not supported": (
        "EmptyLatentHunyuan3Dv2 Hunyuan3Dv2Conditioning Hunyuan3Dv2ConditioningMultiView VAEDecodeHunyuan3D "
        "VoxelToMeshBasic VoxelToMesh SaveGLB Load3D Preview3D StableZero123_Conditioning "
        "StableZero123_Conditioning_Batched SV3D_Conditioning Load3DAdvanced Preview3DAdvanced "
        "PreviewGaussianSplat PreviewPointCloud Trellis2Conditioning Pixal3DConditioning Trellis2ShapeStage "
        "EmptyTrellis2LatentStructure Trellis2TextureStage VaeDecodeTextureTrellis VaeDecodeShapeTrellis "
        "VaeDecodeStructureTrellis2 Trellis2UpsampleStage FillHoles WeldVertices DecimateMesh RemeshMesh "
        "UnwrapMesh RenderUVAtlas PaintMesh BakeTextureFromVoxel MeshTextureToImage ApplyTextureToMesh "
        "BakeNormalMapFromMesh BakeAmbientOcclusion RenderMesh MeshSmoothNormals MeshToFile3D RotateMesh "
        "MergeMeshes GetMeshInfo Save3DAdvanced SaveGaussianSplat SavePointCloud SplatToFile3D File3DToSplat "
        "RenderSplat CreateCameraInfo TransformSplat GetSplatCount MergeSplat SplatToMesh "
        "TripoSplatPreprocessImage TripoSplatConditioning VAEDecodeTripoSplat TripoSplatSamplingPreview"
    ),
    "it is for a model family that is not supported": (
        "EmptyChromaRadianceLatentImage ChromaRadianceOptions "
        "LotusConditioning "
        "StableCascade_EmptyLatentImage StableCascade_StageB_Conditioning StableCascade_StageC_VAEEncode "
        "StableCascade_SuperResolutionControlnet ModelSamplingStableCascade "
        "ModelNoiseScale Ideogram4Scheduler BerniniConditioning "
        "TextEncodeMageFlowEdit TextEncodeJoyImageEdit TextEncodeBooguEdit PiDConditioning "
        "WanUni3CControlnetApply SUPIRApply AnimaLLLiteApply TextEncodeZImageOmni "
        "EmptyHiDreamO1LatentImage HiDreamO1ReferenceImages HiDreamO1PatchSeamSmoothing"
    ),
    "hypernetworks are not supported": ("HypernetworkLoader"),
    "patches that change how the network itself runs are not supported": ("TorchCompileModel ScaleROPE"),
    "merging models of this family is not supported": (
        "ModelMergeMochiPreview ModelMergeLTXV ModelMergeCosmos7B ModelMergeCosmos14B ModelMergeCosmosPredict2_2B "
        "ModelMergeCosmosPredict2_14B"
    ),
    "training is not supported": ("TrainLoraNode LoraModelLoader LossGraphNode SaveLoRA"),
    "datasets that training reads are not written or read, as there is no training": (
        "SaveTrainingDataset LoadTrainingDataset"
    ),
    "PhotoMaker is not supported": ("PhotoMakerLoader PhotoMakerEncode"),
    "the model that upscales latents four times is not supported": ("SD_4XUpscale_Conditioning"),
    "a text of its own for a ControlNet is not supported": ("CLIPTextEncodeControlnet"),
    "latents that grow while they are sampled are not supported; put between two samplers": ("SamplerLCMUpscale"),
    "ComfyUI deprecates it; use": ("PerpNeg"),
    "vector images are not supported": ("SaveSVGNode"),
    "shaders are not run: they need OpenGL ES, of which this server brings none": ("GLSLShader"),
    "Gemma 3 and 4, which write LTX-2's prompts, are not supported": ("TextGenerateLTX2Prompt"),
    "models that find, cut out or measure what is in an image are not supported": (
        "SDPoseKeypointExtractor SDPoseDrawKeypoints SDPoseFaceBBoxes LoadBackgroundRemovalModel "
        "RemoveBackground RTDETR_detect SAM3_Detect SAM3_VideoTrack SAM3_TrackPreview "
        "SAM3_TrackToMask LoadMoGeModel MoGeInference MoGePanoramaInference MoGeRender MoGePointMapToMesh "
        "LoadMediaPipeFaceLandmarker MediaPipeFaceLandmarker MediaPipeFaceMeshVisualize MediaPipeFaceMask "
        "MoGeGeometryToFOV LoadDA3Model DA3Inference DA3Render DA3GeometryToMesh"
    ),
}

UNSUPPORTED: Mapping[str, str] = {
    class_type: reason for reason, class_types in _BY_REASON.items() for class_type in class_types.split()
}
"""Why there is no such class, in words that end a sentence, by its name."""
